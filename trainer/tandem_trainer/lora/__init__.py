"""The weights half of the worker: LoRA fine-tuning, its checkpoints, the adapter and the merged model."""
