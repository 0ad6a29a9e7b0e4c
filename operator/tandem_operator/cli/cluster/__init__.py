"""Runs on a cluster, by the user's kubeconfig: `tandem submit | list | watch | logs | cancel | suspend | resume`.

Only `commands` is imported when the command line starts; everything that needs the Kubernetes client comes later.
"""
