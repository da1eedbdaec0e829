"""What the notebooks and the book need beside `hessinit_lib`."""
