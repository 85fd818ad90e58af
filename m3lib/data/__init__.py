"""What training reads: the manifest, the image store, batches and files."""
