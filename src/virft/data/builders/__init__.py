"""Training sets from annotations: readers, an index on disk, the choice of rows, writers, manifests."""
