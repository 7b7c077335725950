"""How requests are sent, and whether their answers can be right.

arrivals           when a user sends: closed loop, or the times of a Poisson process
rest, grpc_sender  one request over each interface
replies            the answers of all interfaces, and their check
"""
