"""Tier 1, on Airflow's API server (Airflow 3.0 and later): the server, not the task, says which task is
calling.
"""
