"""What training reads, and how files are written.

files       write a file completely or not at all, compute digests, check disk space
manifest    the prepared folder: one row per image with its split, role and labels
store       the images of a prepared folder, raw or JPEG
batches     batches of images, read ahead and converted to network input
"""
