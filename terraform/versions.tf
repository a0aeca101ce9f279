terraform {
  required_version = ">= 1.9"

  required_providers {
    openstack = {
      source  = "terraform-provider-openstack/openstack"
      version = "~> 3.0"
    }
  }

  # Each lab is a workspace, whose state is private/<lab>/terraform.tfstate.  Another place: see docs/admin/cloud.md.
  backend "local" {
    workspace_dir = "../private"
  }
}

# The login comes from the environment (OS_CLOUD with clouds.yaml, or OS_*), never from a file of this folder.
provider "openstack" {}
