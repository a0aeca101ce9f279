output "name" {
  description = "The bucket's name."
  value       = var.manage ? openstack_objectstorage_container_v1.artifacts[0].name : var.name
}
