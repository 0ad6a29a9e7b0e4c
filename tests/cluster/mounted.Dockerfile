# For the test cluster: a trainer image without its packages (3 GB). Pods mount the shared environment of
# tools/environment at /opt/environment (environment.yaml); its programs (weed) are in /opt/environment/bin.
ARG BASE
FROM ${BASE}
ENV PYTHONPATH=/opt/environment/lib/python3.11/site-packages
