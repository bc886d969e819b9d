"""The demo's task trained by us and by TRL's GRPOTrainer: same base, LoRA, rows, rewards, machine.

compare.py    runs both and makes the records
task.py       the settings that both sides share, and the held-out rows
ours.py       a real server with engine and learner; the agent over HTTP, or as a Python callable
peer.py       GRPOTrainer with the task as its environment, in an environment of its own
"""
