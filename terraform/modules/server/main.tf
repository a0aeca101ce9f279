locals {
  # a key of a security token opens the machine (user data has all keys), but Nova takes it for no key pair
  plain_keys = [for key in var.public_keys : key if can(regex("^(ssh-(rsa|ed25519)|ecdsa-sha2-nistp(256|384|521)) ", key))]
  address    = var.floating_ip == "" ? openstack_networking_floatingip_v2.server[0].address : var.floating_ip

  data_volume_id = (
    var.data_volume == "none" ? "" :
    var.data_volume == "manage" ? openstack_blockstorage_volume_v3.data[0].id : var.data_volume
  )
}

resource "openstack_compute_keypair_v2" "admin" {
  count      = var.key_pair == "" && length(local.plain_keys) > 0 ? 1 : 0
  name       = "${var.name}-key"
  public_key = local.plain_keys[0]
}

resource "openstack_networking_port_v2" "server" {
  name               = "${var.name}-mlflow"
  network_id         = var.network.network_id
  security_group_ids = var.network.security_group_ids

  dynamic "fixed_ip" {
    for_each = var.network.subnet_id == "" ? [] : [var.network.subnet_id]
    content {
      subnet_id = fixed_ip.value
    }
  }
}

resource "openstack_compute_instance_v2" "server" {
  name         = "${var.name}-mlflow"
  image_id     = var.boot_volume_gb > 0 ? null : var.image_id
  flavor_id    = var.flavor_id
  key_pair     = var.key_pair == "" ? one(openstack_compute_keypair_v2.admin[*].name) : var.key_pair
  config_drive = true
  user_data    = templatefile("${path.module}/templates/user_data.yml.tftpl", { fqdn = var.fqdn, public_keys = var.public_keys })

  network {
    port = openstack_networking_port_v2.server.id
  }

  dynamic "block_device" {
    for_each = var.boot_volume_gb > 0 ? [var.image_id] : []
    content {
      uuid                  = block_device.value
      source_type           = "image"
      destination_type      = "volume"
      volume_size           = var.boot_volume_gb
      boot_index            = 0
      delete_on_termination = true
    }
  }

  lifecycle {
    # A newer image or another text of ours is no reason to throw a running server away.  config_drive and network: of a
    # server that is taken over, the provider reads neither back.
    ignore_changes = [image_id, image_name, block_device, user_data, key_pair, config_drive, network]
  }
}

# What must outlive the machine is apart from it.

resource "openstack_networking_floatingip_v2" "server" {
  count       = var.floating_ip == "" ? 1 : 0
  pool        = var.external_network
  description = "labtrack: ${var.name}"

  lifecycle {
    prevent_destroy = true
  }
}

resource "openstack_networking_floatingip_associate_v2" "server" {
  floating_ip = local.address
  port_id     = openstack_networking_port_v2.server.id
}

resource "openstack_blockstorage_volume_v3" "data" {
  count       = var.data_volume == "manage" ? 1 : 0
  name        = "${var.name}-data"
  description = "labtrack: PostgreSQL of ${var.name}"
  size        = var.data_volume_gb

  enable_online_resize = true

  lifecycle {
    prevent_destroy = true
  }
}

resource "openstack_compute_volume_attach_v2" "data" {
  count       = var.data_volume == "none" ? 0 : 1
  instance_id = openstack_compute_instance_v2.server.id
  volume_id   = local.data_volume_id
}
