"""The chaos campaign: real Kafka, real S3, `shoal up`, a provider that misbehaves, and kills at random moments.

`python -m tests.chaos --kills 200 --seed 7` (or `make chaos KILLS=200 SEED=7`). See tests/chaos/campaign.py.
"""
