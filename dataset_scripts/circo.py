"""Convert CIRCO's official files into datasets in the package's schemas, which plain `load_dataset` reads.

    python dataset_scripts/circo.py CIRCO --output circo-data

Writes the configs `queries` (QUERY with the column `part`) and `gallery` (GALLERY with the column `part`) for
the splits val and test. Images are named by their paths and stay where they are; `--embed` copies them in.
"""

if __name__ == "__main__":
    from converting import main

    main("circo", __doc__)
else:
    raise ImportError(f"circo.py is a converter, not a loading script of `datasets`. {__doc__}")
