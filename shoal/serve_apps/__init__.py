"""Serve applications: REST, the hosting of MCP, query embedding, and the one search service behind both."""
