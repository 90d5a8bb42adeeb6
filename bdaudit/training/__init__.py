"""The one tuning loop, batched augmentation and metrics that attacks, defenses and probes share."""
