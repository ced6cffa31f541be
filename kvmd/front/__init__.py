"""The public sockets, Unix and TLS: listeners, who is there, and the relay to grpc's private socket.

grpcio can't say who is on the other end of a Unix socket, can't take over systemd's listening socket, and
takes over a live socket's path without a word; so kvmd owns the listener. Knows nothing of kernels, policy or grpc.
"""
