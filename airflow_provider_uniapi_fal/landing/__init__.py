"""Media between storage and the gateway: results copied out, inputs taken in."""
