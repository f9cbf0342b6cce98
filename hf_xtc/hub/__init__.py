"""Publishing: the model card, and the upload of packed folders."""
