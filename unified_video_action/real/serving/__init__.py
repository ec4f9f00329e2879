"""The policy server and its client: openpi's websocket protocol, and an adapter for umi-arx's client."""
