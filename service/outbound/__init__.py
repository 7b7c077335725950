"""Calls to foreign hosts, images by URL and engines, made by a process of its own.

    process    the gateway's side: starts and restarts the process, and calls it
    messages   what the two exchange
    program    the process
    images     a file by URL, from allowed and public hosts only
    engines    chat completions of an engine
    bounds     limits on a response, as received
    urls       which URLs are allowed

A host can occupy the process, never the event loop that answers clients: what reaches the gateway
is valid, finite and bounded.
"""
