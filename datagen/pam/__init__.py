"""The model: checkpoint, SAM 2 front end, perceiver, projectors, prompts."""
