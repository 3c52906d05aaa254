"""Data sets: from a source to prepared splits on disk, and from those to examples."""
