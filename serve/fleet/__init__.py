"""The server on a cluster of Ray: replicas, and an entrance that sends each request to one of them."""
