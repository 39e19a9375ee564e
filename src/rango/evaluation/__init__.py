"""What a model is worth: loss, perplexity, accuracy, exact match, forgetting, proof."""
