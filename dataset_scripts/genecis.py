"""Convert GeneCIS's official files into datasets in the package's schemas.

    python dataset_scripts/genecis.py GENECIS --output genecis-data

Writes the configs `queries` (QUERY with the column `part`, the task; a query's own gallery is its `subset_ids`) and
`gallery` (GALLERY with the column `part`) for the split val. Objects of Visual Genome are cut out and embedded; COCO's
images are named by their paths and stay where they are; `--embed` copies them in.
"""

if __name__ == "__main__":
    from converting import main

    main("genecis", __doc__)
else:
    raise ImportError(f"genecis.py is a converter, not a loading script of `datasets`. {__doc__}")
