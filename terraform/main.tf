# What the lab's server needs of the cloud: a network, a machine with its address, a bucket.
# lab.yml says what; the modules make it, or take what exists.

locals {
  lab  = yamldecode(file("${var.lab_dir}/group_vars/all/lab.yml"))
  name = local.lab.lab_name

  # what relative paths in lab.yml start at, and where the lab's private files are
  root    = "${var.lab_dir}/../.."
  private = "private/${local.name}"

  key_files = { for path in distinct(flatten([for admin in local.lab.lab_admins : try(admin.ssh_key_files, [])])) :
    path => file(can(regex("^[~/]", path)) ? pathexpand(path) : "${local.root}/${path}")
  }
  public_keys = distinct(flatten([
    for admin in local.lab.lab_admins : concat(
      try(admin.ssh_keys, []),
      [for path in try(admin.ssh_key_files, []) : regexall("(?m)^[a-z][^\r\n]*", local.key_files[path])],
    ) if try(admin.state, "present") == "present"
  ]))
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

  name             = local.name
  existing_network = try(local.lab.lab_network, "")
  existing_router  = try(local.lab.lab_router, "")
  external_network = try(local.lab.lab_external_network, "")
  cidr             = try(local.lab.lab_network_cidr, "10.20.0.0/24")
  admin_networks   = local.lab.lab_admin_networks
}

module "server" {
  source = "./modules/server"

  name             = local.name
  fqdn             = local.lab.lab_fqdn
  image            = try(local.lab.lab_image, "")
  flavor           = try(local.lab.lab_flavor, "")
  boot_volume_gb   = try(local.lab.lab_boot_volume_gb, 0)
  data_volume      = try(local.lab.lab_data_volume, "none")
  data_volume_gb   = try(local.lab.lab_data_volume_gb, 20)
  floating_ip      = try(local.lab.lab_floating_ip, "")
  key_pair         = try(local.lab.lab_key_pair, "")
  public_keys      = local.public_keys
  network          = module.network.ready
  external_network = module.network.external_network
}

module "bucket" {
  source = "./modules/bucket"

  name       = local.lab.lab_bucket
  manage     = try(local.lab.lab_bucket_manage, true)
  versioning = try(local.lab.lab_bucket_versioning, true)
}

locals {
  hosts = {
    server = {
      address     = module.server.address
      user        = try(local.lab.lab_server_user, "debian")
      groups      = ["postgresql", "mlflow", "nginx"]
      server_id   = module.server.server_id
      data_volume = module.server.data_volume_id
    }
  }
}
