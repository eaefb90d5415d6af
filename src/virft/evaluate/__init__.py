"""The evaluation suites: ``python -m virft.evaluate coco``; the programs in the folders share this code."""
