"""`make torture`: kills and disturbs real runs on small engines, and checks what each leaves behind."""
