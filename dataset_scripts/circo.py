"""Convert CIRCO's official files into datasets in the package's schemas, which plain `load_dataset` reads.

    python dataset_scripts/circo.py CIRCO --output circo-data

Writes the configs `queries` (QUERY with the column `part`) and `gallery` (GALLERY with the column `part`) for
the splits val and test. Images are named by their paths and stay where they are; `--embed` copies them in.
"""

from converting import main

if __name__ == "__main__":
    main("circo", __doc__)
