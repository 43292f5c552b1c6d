"""Files, vector stores, what is put into them and found in them."""
