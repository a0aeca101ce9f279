# What the lab's server needs of the cloud: a network, a machine with its address, a bucket.
# lab.yml says what; `labtrack provision prepare` completes it, with what the cloud has under the names in it.

locals {
  lab   = jsondecode(file(var.lab_file))
  name  = local.lab.lab_name
  found = local.lab.found
}

data "openstack_identity_auth_scope_v3" "login" {
  name = "login"

  lifecycle {
    postcondition {
      condition     = contains(["", self.project_id], var.expected_project)
      error_message = "The login is in the project ${self.project_name} (${self.project_id}), but the lab's hosts.yml names a server in the project ${var.expected_project}. Correct lab_cloud or the OS_* variables of the shell. If the lab is to move to this project, read docs/admin/cloud.md first: what is in the other project stays there."
    }
  }
}

module "network" {
  source = "./modules/network"

  name                = local.name
  network_id          = local.found.network
  router_id           = local.found.router
  external_network_id = local.found.external_network
  cidr                = local.lab.lab_network_cidr
  admin_networks      = local.lab.lab_admin_networks
}

module "server" {
  source = "./modules/server"

  name             = local.name
  fqdn             = local.lab.lab_fqdn
  image_id         = local.found.image
  flavor_id        = local.found.flavor
  boot_volume_gb   = local.lab.lab_boot_volume_gb
  data_volume      = local.found.data_volume
  data_volume_gb   = local.lab.lab_data_volume_gb
  floating_ip      = local.lab.lab_floating_ip
  key_pair         = local.lab.lab_key_pair
  public_keys      = local.lab.public_keys
  network          = module.network.ready
  external_network = local.found.external_network_name
}

module "bucket" {
  source = "./modules/bucket"

  name       = local.lab.lab_bucket
  manage     = local.lab.lab_bucket_manage
  versioning = local.lab.lab_bucket_versioning
}

locals {
  hosts = {
    server = {
      address     = module.server.address
      user        = local.lab.lab_server_user
      groups      = ["postgresql", "mlflow", "nginx"]
      server_id   = module.server.server_id
      data_volume = module.server.data_volume_id
    }
  }
}
