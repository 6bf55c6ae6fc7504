"""Language models: asked over chat completions, the Batch API, or in this process; answers are kept on disk."""
