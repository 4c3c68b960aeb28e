"""A run on Kubernetes: a manifest to apply, and what runs in its pods.

manifest.py   a run → ConfigMap, headless Service and indexed Job, as YAML
pod.py        the ranks of one pod: which they are follows from the pod's index
"""
