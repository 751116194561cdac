"""What survives kills, simultaneous starts and failing disks; run each script as `python -m pipelines.stress.kills`."""
