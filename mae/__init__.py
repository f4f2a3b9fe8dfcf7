"""Masked autoencoders on MindSpore: model, training, evaluation, launch. No Prefect."""
