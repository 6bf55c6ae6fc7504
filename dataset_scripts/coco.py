"""Convert Pic2Word's COCO object composition's official files into datasets in the package's schemas.

    python dataset_scripts/coco.py data --output coco-data

Writes the configs `queries` (QUERY with the column `part`), `gallery` (GALLERY with the column `part`) and `references`
(the regions that ask, cut out and embedded) for the split val. Images are named by their paths and stay where they
are; `--embed` copies them in.
"""

if __name__ == "__main__":
    from converting import main

    main("coco", __doc__)
else:
    raise ImportError(f"coco.py is a converter, not a loading script of `datasets`. {__doc__}")
