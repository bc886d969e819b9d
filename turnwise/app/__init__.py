"""Where rooms meet: Settings -> objects -> one ASGI app. Imports no torch.

    rooms.py    opens the rooms in order, and closes them in reverse
    jobs.py     what a job's loop, and a served model, are plugged together from
    doors.py    the doors over the rooms, and which of them answers a request
    server.py   the process: its socket, its signals

One server process holds every door, the gateway and the jobs' loops on one asyncio loop; engines,
learners and MLflow are its child processes.
"""
