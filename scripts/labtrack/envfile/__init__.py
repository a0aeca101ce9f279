"""mlflow_env.sh: the one file that a researcher gets."""

from labtrack.envfile.read import EnvFile, read_envfile

__all__ = ["EnvFile", "read_envfile"]
