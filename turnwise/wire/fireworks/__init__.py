"""The control plane of Fireworks' reinforcement fine-tuning, as its public clients call it.

`eval-protocol` and the `fireworks-ai` SDK are the clients. What is served is in docs/fireworks.md.
"""
