"""The MCP server: tools for coding agents over a service protocol; no Ray, no HTTP, no store in it."""
