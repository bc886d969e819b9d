"""An aircraft inspection by a standard operating procedure, in the shape of SOP-Bench.

data.py    makes the tables from a seed; reads any folder in SOP-Bench's format
tools.py   answers tool calls from the tables
task.py    what the model is told, and how its answer is scored
agent.py   the agent: a small HTTP server with its own tool loop
base.py    makes the tiny base model that the demo starts from
"""
