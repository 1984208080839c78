"""What a model does and costs: perplexity and divergence, tasks, speed, where the time goes, and plots of it."""
