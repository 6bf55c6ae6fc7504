"""Convert Pic2Word's ImageNet domain conversion's official files into datasets in the package's schemas.

    python dataset_scripts/imagenet.py data --output imagenet-data

Writes the configs `queries` (QUERY with the column `part`, the domain), `gallery` (GALLERY with the column `part`) and
`references` (the photographs that ask) for the split val. Images are named by their paths and stay where they are;
`--embed` copies them in.
"""

if __name__ == "__main__":
    from converting import main

    main("imagenet", __doc__)
else:
    raise ImportError(f"imagenet.py is a converter, not a loading script of `datasets`. {__doc__}")
