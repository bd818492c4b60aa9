"""The multitask model and its parts: plain torch, no Ray."""
