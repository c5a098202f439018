"""Many jobs on many GPUs: what a job is, which GPU gets it, how it runs there, and where its rows are gathered.

Only ray_hosts.py imports Ray; the rest runs, and is tested, without it.
"""
