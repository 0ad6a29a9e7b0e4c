"""One run on one machine: vLLM, an S3 server and workers as child processes, under the same engine as a cluster."""
