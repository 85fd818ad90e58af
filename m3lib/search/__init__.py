"""A catalogue that can be searched by attribute and by class."""
