"""Parts of models that can be tested without a server around them."""
