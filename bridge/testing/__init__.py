"""Test doubles: a simulated phone (with Twilio) and a simulated agent, and a load generator.

They share no code with the bridge: each is an independent reading of the documentation.
"""
