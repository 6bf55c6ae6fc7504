"""Convert CIRR's official files into datasets in the package's schemas, which plain `load_dataset` reads.

    python dataset_scripts/cirr.py cirr_dataset --output cirr-data

Writes the configs `queries` (QUERY with the column `part`) and `gallery` (GALLERY with the column `part`) for
the splits val and test1. Images are named by their paths and stay where they are; `--embed` copies them in.
"""

if __name__ == "__main__":
    from converting import main

    main("cirr", __doc__)
else:
    raise ImportError(f"cirr.py is a converter, not a loading script of `datasets`. {__doc__}")
