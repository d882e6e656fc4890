"""Scripts that make Galley Tiny, the model that ships with Galley: corpus, tokenizer, training, export, evaluation."""
