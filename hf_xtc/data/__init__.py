"""Tables in, checked rows out: GLUE and files of one's own, augmentation, metrics."""
