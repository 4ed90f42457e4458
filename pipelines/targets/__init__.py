"""What compiles a definition for Kubeflow or Vertex AI, with hardware as settings."""
