"""`make torture`: real runs on small engines, ended or disturbed in every way, and what is left of them."""
